-- @config message.prefix.exclude.list=skip.*,oracle.*x
-- @setup
CREATE TABLE public.lm (id int PRIMARY KEY);
-- @stream
SELECT pg_logical_emit_message(true, 'pre', 'hello');
SELECT pg_logical_emit_message(false, 'pre', 'bye ünï');
SELECT pg_logical_emit_message(true, 'skipme', 'no');
SELECT pg_logical_emit_message(true, 'bin', '\x00ff'::bytea);
SELECT pg_logical_emit_message(true, '', '');
BEGIN;
INSERT INTO public.lm VALUES (1);
SELECT pg_logical_emit_message(true, 'in', 'tx');
SELECT pg_logical_emit_message(false, 'out', 'tx');
INSERT INTO public.lm VALUES (2);
COMMIT;
BEGIN;
SELECT pg_logical_emit_message(true, 'gone', 'tx');
SELECT pg_logical_emit_message(false, 'stays', 'tx');
ROLLBACK;

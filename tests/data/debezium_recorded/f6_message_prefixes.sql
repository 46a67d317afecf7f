-- Messages by their prefix.
-- @config message.prefix.include.list=oracle.*,keep
-- @setup
CREATE TABLE public.h (id int PRIMARY KEY);
INSERT INTO public.h VALUES (1);
-- @stream
SELECT pg_logical_emit_message(false, 'keep', 'x');
SELECT pg_logical_emit_message(false, 'gone', 'x');
INSERT INTO public.h VALUES (2);

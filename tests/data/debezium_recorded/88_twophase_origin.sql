-- @setup
CREATE TABLE public.o (id int PRIMARY KEY, v text);
SELECT pg_replication_origin_create('up');
-- @stream
-- @conn O
SELECT pg_replication_origin_session_setup('up');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/ABCDEF', '2020-01-01Z');
INSERT INTO public.o VALUES (1,'from up');
COMMIT;
-- @conn P
INSERT INTO public.o VALUES (2,'local');
BEGIN;
SAVEPOINT a;
INSERT INTO public.o VALUES (3,'sub');
ROLLBACK TO a;
SAVEPOINT b;
INSERT INTO public.o VALUES (4,'sub2');
RELEASE b;
INSERT INTO public.o VALUES (5,'top');
COMMIT;

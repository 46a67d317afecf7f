-- @config provide.transaction.metadata=true
-- @config table.include.list=public.a,public.b
-- @config transforms=unwrap
-- @config transforms.unwrap.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.unwrap.add.fields=transaction.id,transaction.total_order
-- @setup
CREATE TABLE public.a (id int PRIMARY KEY, v text);
CREATE TABLE public.b (id int PRIMARY KEY, v text);
CREATE TABLE public.c (id int PRIMARY KEY, v text);
INSERT INTO public.a VALUES (1,'x');
-- @stream
BEGIN;
INSERT INTO public.a VALUES (2,'y');
INSERT INTO public.c VALUES (2,'y');
INSERT INTO public.b VALUES (2,'y');
UPDATE public.a SET id=3 WHERE id=2;
DELETE FROM public.b;
COMMIT;
INSERT INTO public.c VALUES (3,'z');
BEGIN;
INSERT INTO public.a VALUES (9,'r');
ROLLBACK;
TRUNCATE public.b;

-- Cascades, conflicts and savepoints.
-- @config provide.transaction.metadata=true
-- @config max.batch.size=2
-- @setup
CREATE TABLE public.c (id serial PRIMARY KEY, v int UNIQUE, d timestamptz DEFAULT '2020-01-01 00:00+00');
CREATE TABLE public.e (id int PRIMARY KEY REFERENCES public.c ON UPDATE CASCADE ON DELETE CASCADE DEFERRABLE);
-- @stream
INSERT INTO public.c (v) SELECT generate_series(1, 7);
INSERT INTO public.e VALUES (1), (2);
UPDATE public.c SET id = id + 100 WHERE id < 3;
INSERT INTO public.c (v) VALUES (1) ON CONFLICT (v) DO UPDATE SET v = 1000;
DELETE FROM public.c WHERE id > 100;
BEGIN;
INSERT INTO public.c (v) VALUES (50);
SAVEPOINT a;
INSERT INTO public.c (v) VALUES (51);
ROLLBACK TO a;
UPDATE public.c SET v = 52 WHERE v = 50;
COMMIT;

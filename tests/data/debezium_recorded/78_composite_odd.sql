-- @setup
CREATE TABLE public.uq (a int NOT NULL, b text, c int UNIQUE);
CREATE UNIQUE INDEX ON public.uq (b, a);
CREATE TABLE public.pkinc (a int, b text, c int, PRIMARY KEY (b, a) INCLUDE (c));
CREATE TABLE public.fk (ts timestamptz, n numeric(5,2), u uuid, d date, PRIMARY KEY (u, n, ts, d));
INSERT INTO public.uq VALUES (1,'x',NULL);
INSERT INTO public.pkinc VALUES (1,'x',3);
INSERT INTO public.fk VALUES ('2020-01-01Z', 1.25, '00000000-0000-0000-0000-00000000000a','2020-02-02');
-- @stream
INSERT INTO public.uq VALUES (2,NULL,5);
UPDATE public.pkinc SET c=4;
UPDATE public.pkinc SET a=2;
DELETE FROM public.pkinc;
UPDATE public.fk SET n=2.5;
DELETE FROM public.fk;

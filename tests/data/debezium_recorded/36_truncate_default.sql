-- TRUNCATE; skipped.operations=none.
-- @setup
CREATE TABLE public.tr1 (id int PRIMARY KEY, v text);
CREATE TABLE public.tr2 (id int PRIMARY KEY, r int REFERENCES public.tr1);
CREATE TABLE public.tr3 (id int PRIMARY KEY);
INSERT INTO public.tr1 VALUES (1, 'a');
INSERT INTO public.tr2 VALUES (1, 1);
-- @stream
INSERT INTO public.tr3 VALUES (1);
TRUNCATE public.tr1 CASCADE;
TRUNCATE public.tr3 RESTART IDENTITY;
BEGIN;
INSERT INTO public.tr1 VALUES (2, 'b');
TRUNCATE public.tr1, public.tr2, public.tr3;
INSERT INTO public.tr1 VALUES (3, 'c');
COMMIT;

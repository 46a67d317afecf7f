-- A publication of some tables.
-- @config publication.autocreate.mode=filtered
-- @config table.include.list=public.in_.*
-- @config skipped.operations=none
-- @config provide.transaction.metadata=true
-- @setup
CREATE TABLE public.in_a (id int PRIMARY KEY, v text);
CREATE TABLE public.out_b (id int PRIMARY KEY, v text);
CREATE TABLE public.in_c (id int PRIMARY KEY REFERENCES public.in_a ON DELETE CASCADE);
INSERT INTO public.in_a VALUES (1, 'a');
-- @stream
BEGIN;
INSERT INTO public.out_b VALUES (1, 'x');
INSERT INTO public.in_a VALUES (2, 'b');
INSERT INTO public.in_c VALUES (2);
COMMIT;
INSERT INTO public.out_b VALUES (2, 'x');
DELETE FROM public.in_a WHERE id = 2;
TRUNCATE public.in_a CASCADE;

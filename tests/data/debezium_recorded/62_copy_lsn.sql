-- @setup
CREATE TABLE public.cp (id int PRIMARY KEY, v text);
-- @stream
INSERT INTO public.cp SELECT i, 'v'||i FROM generate_series(1,50) i;
UPDATE public.cp SET id = id + 1000 WHERE id <= 3;
DELETE FROM public.cp WHERE id > 20;

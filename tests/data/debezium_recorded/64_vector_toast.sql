-- @setup
CREATE EXTENSION vector;
CREATE TABLE public.vt (id int PRIMARY KEY, e vector(1000), h halfvec(2000), s sparsevec(10), t text);
ALTER TABLE public.vt ALTER e SET STORAGE EXTERNAL; ALTER TABLE public.vt ALTER h SET STORAGE EXTERNAL;
INSERT INTO public.vt SELECT 1, ('['||string_agg((i*0.5)::text,',')||']')::vector, ('['||string_agg((i*0.25)::text,',')||','||string_agg('1',',')||']')::halfvec, '{1:1.5,3:2}/10', 'x' FROM generate_series(1,1000) i;
-- @stream
UPDATE public.vt SET t='y';
DELETE FROM public.vt;

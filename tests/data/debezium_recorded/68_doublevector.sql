-- @config decimal.handling.mode=double
-- pgvector.
-- @setup
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE public.vec (id int PRIMARY KEY, v vector(3), vu vector, h halfvec(2), s sparsevec(5));
INSERT INTO public.vec VALUES (1, '[1,2.5,-3]', '[1]', '[0.5,1]', '{1:1.5,4:2}/5'), (2, NULL, NULL, NULL, NULL);
-- @stream
INSERT INTO public.vec SELECT id + 10, v, vu, h, s FROM public.vec ORDER BY id;

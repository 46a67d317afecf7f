-- @config decimal.handling.mode=double
-- numeric NaN / Infinity, decimal.handling.mode=string.
-- @setup
CREATE TABLE public.ns (id int PRIMARY KEY, n numeric, n2 numeric(10,2));
INSERT INTO public.ns VALUES (1, 'NaN', 'NaN');
-- @stream
INSERT INTO public.ns VALUES (2, 'NaN', 'NaN');
INSERT INTO public.ns VALUES (3, 1, 1);
INSERT INTO public.ns VALUES (4, 'Infinity', NULL);
INSERT INTO public.ns VALUES (5, '-Infinity', NULL);

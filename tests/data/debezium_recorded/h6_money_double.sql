-- Money as doubles.
-- @config decimal.handling.mode=double
-- @setup
CREATE DOMAIN public.dm AS money;
CREATE TABLE public.m (id int PRIMARY KEY, m money, d public.dm, n money NOT NULL, df money DEFAULT 1.5, a money[]);
INSERT INTO public.m VALUES (1, 1.5, -1.25, 0, 0, '{1}'), (2, '92233720368547758.07', '-92233720368547758.08', '-0.01', NULL, NULL), (3, NULL, NULL, '$1,000.10', DEFAULT, '{}');
-- @stream
INSERT INTO public.m SELECT id + 10, m, d, n, df, a FROM public.m ORDER BY id;
UPDATE public.m SET id = 20 WHERE id = 1;
DELETE FROM public.m WHERE id = 2;

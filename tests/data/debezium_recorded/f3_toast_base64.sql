-- Values that were not sent, where bytes are texts.
-- @config binary.handling.mode=base64
-- @config hstore.handling.mode=map
-- @setup
CREATE TABLE public.big (id int PRIMARY KEY, t text, b bytea, j jsonb, v varchar, ta text[], ba bytea[], ia int[], x numeric, n int, c char(9000), tn text NOT NULL, bn bytea);
ALTER TABLE public.big ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER j SET STORAGE EXTERNAL, ALTER v SET STORAGE EXTERNAL, ALTER ta SET STORAGE EXTERNAL, ALTER ba SET STORAGE EXTERNAL, ALTER ia SET STORAGE EXTERNAL, ALTER c SET STORAGE EXTERNAL, ALTER tn SET STORAGE EXTERNAL, ALTER bn SET STORAGE EXTERNAL;
-- @stream
INSERT INTO public.big SELECT 1, repeat('t', 3000), convert_to(repeat('b', 3000), 'UTF8'), to_jsonb(repeat('j', 3000)), repeat('v', 3000), ARRAY[repeat('a', 3000)], ARRAY[convert_to(repeat('c', 3000), 'UTF8')], array_agg(i), 1, 1, repeat('c', 9000), repeat('n', 3000), convert_to(repeat('m', 3000), 'UTF8') FROM generate_series(1, 1000) i;
UPDATE public.big SET n = 2;
UPDATE public.big SET id = 2;
UPDATE public.big SET t = 'short', b = '\x01';
DELETE FROM public.big;

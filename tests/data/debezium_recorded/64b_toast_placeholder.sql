-- @config unavailable.value.placeholder=__gone__
-- Unchanged TOASTed values, REPLICA IDENTITY DEFAULT: placeholder instead of the value (large values stored EXTERNAL so they are really out of line).
-- @setup
CREATE TABLE public.ts (id int PRIMARY KEY, v int, t text, b bytea, j jsonb, ta text[], ia int[], vc varchar(8000), n text NOT NULL);
ALTER TABLE public.ts ALTER t SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER j SET STORAGE EXTERNAL, ALTER ta SET STORAGE EXTERNAL, ALTER ia SET STORAGE EXTERNAL, ALTER vc SET STORAGE EXTERNAL, ALTER n SET STORAGE EXTERNAL;
INSERT INTO public.ts SELECT 1, 0, repeat('t', 3000), decode(repeat('ab', 3000), 'hex'), jsonb_build_object('k', repeat('j', 3000)), array_fill(repeat('e', 30), array[120]), array_fill(1234567, array[900]), repeat('v', 3000), repeat('n', 3000);
INSERT INTO public.ts VALUES (2, 0, 'small', '\x01', '{}', '{a}', '{1}', 'small', 'small');
-- @stream
UPDATE public.ts SET v = 1 WHERE id = 1;                 -- every large column unchanged
UPDATE public.ts SET v = 1 WHERE id = 2;                 -- small values are inline: always present
UPDATE public.ts SET t = repeat('T', 2500) WHERE id = 1; -- t present, others placeholders
UPDATE public.ts SET t = NULL, b = NULL WHERE id = 1;
UPDATE public.ts SET v = 3 WHERE id = 1;                 -- t, b really NULL now
UPDATE public.ts SET id = 100 WHERE id = 1;              -- PK change with unchanged toast
DELETE FROM public.ts WHERE id = 100;

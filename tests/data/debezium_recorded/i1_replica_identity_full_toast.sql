-- Large values with old rows whole, then not.
-- @config provide.transaction.metadata=false
-- @setup
CREATE TABLE public.tf (id int PRIMARY KEY, t text, j jsonb, n int);
ALTER TABLE public.tf ALTER t SET STORAGE EXTERNAL;
ALTER TABLE public.tf REPLICA IDENTITY FULL;
INSERT INTO public.tf VALUES (1, repeat('x', 3000), '{}', 1);
-- @stream
UPDATE public.tf SET n = 2;
UPDATE public.tf SET id = 2;
ALTER TABLE public.tf REPLICA IDENTITY DEFAULT;
UPDATE public.tf SET n = 3;
UPDATE public.tf SET id = 3;
ALTER TABLE public.tf REPLICA IDENTITY NOTHING;
INSERT INTO public.tf VALUES (9, 'y', NULL, 1);

-- @setup
CREATE TABLE public.kt (id int PRIMARY KEY, big text, v text NOT NULL DEFAULT 'q');
ALTER TABLE public.kt ALTER big SET STORAGE EXTERNAL;
INSERT INTO public.kt VALUES (1, repeat('x', 4000), 'a');
-- @stream
UPDATE public.kt SET id=2;
UPDATE public.kt SET v='b';
UPDATE public.kt SET big=repeat('y',4000);
DELETE FROM public.kt;

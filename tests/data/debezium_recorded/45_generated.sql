-- @setup
CREATE TABLE public.g (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a int NOT NULL, twice int GENERATED ALWAYS AS (a*2) STORED, v text);
INSERT INTO public.g(a,v) VALUES (1,'x'),(2,'y');
-- @stream
INSERT INTO public.g(a,v) VALUES (3,'z');
UPDATE public.g SET a=10 WHERE id=1;
DELETE FROM public.g WHERE id=2;

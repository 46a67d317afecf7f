-- @setup
CREATE TABLE public.il (id int PRIMARY KEY, v text);
-- @stream
-- @conn A
BEGIN; INSERT INTO public.il VALUES (1,'A1');
-- @conn B
BEGIN; INSERT INTO public.il VALUES (2,'B1');
-- @conn A
INSERT INTO public.il VALUES (3,'A2');
-- @conn B
INSERT INTO public.il VALUES (4,'B2'); COMMIT;
-- @conn A
COMMIT;

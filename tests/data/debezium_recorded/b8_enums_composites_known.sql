-- The same without unknown types.
-- @setup
CREATE TYPE public.mood AS ENUM ('sad', 'o''k', 'very "happy"', 'naïve', '', 'a,b', 'NULL');
CREATE TYPE public.comp AS (a int, b text, c public.mood);
CREATE DOMAIN public.dc AS public.comp; CREATE DOMAIN public.email AS text CHECK (value ~ '@'); CREATE DOMAIN public.ints AS int[];
CREATE TABLE public.en (id int PRIMARY KEY, e public.mood, ea public.mood[], ed public.mood NOT NULL DEFAULT 'o''k', en public.mood NOT NULL, c public.comp, ca public.comp[], dc public.dc, em public.email, ema public.email[], di public.ints, dia public.ints[], ead public.mood[] DEFAULT '{sad}');
INSERT INTO public.en VALUES
 (1, 'sad', '{sad,"very \"happy\""}', 'naïve', '', '(1,"x,y",sad)', '{"(1,a,sad)","(,,)"}', '(2,b,)', 'a@b', '{a@b,c@d}', '{1,2}', NULL, '{}'),
 (2, 'very "happy"', '{sad,NULL}', '', 'a,b', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (3, NULL, '{}', 'NULL', 'naïve', '(,,)', '{}', NULL, '@', '{}', '{}', '{}', '{"NULL",NULL}'),
 (4, 'NULL', '{"NULL","","a,b"}', DEFAULT, 'sad', '(3,é😀,)', NULL, NULL, 'é@ü', '{NULL}', '{NULL,3}', NULL, DEFAULT);
-- @stream
INSERT INTO public.en SELECT id + 100, e, ea, ed, en, c, ca, dc, em, ema, di, dia, ead FROM public.en ORDER BY id;
DELETE FROM public.en WHERE id = 101;

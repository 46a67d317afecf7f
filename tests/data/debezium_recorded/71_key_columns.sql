-- @config message.key.columns=public.(.*)ey:v,id;(.*).nk:a
-- @config table.exclude.list=public.hidden
-- @setup
CREATE TABLE public.akey (id int PRIMARY KEY, v text);
CREATE TABLE public.nk (a int, b text);
CREATE TABLE public.hidden (id int PRIMARY KEY);
INSERT INTO public.akey VALUES (1,'x'),(2,NULL);
INSERT INTO public.nk VALUES (1,'y');
INSERT INTO public.hidden VALUES (1);
-- @stream
INSERT INTO public.akey VALUES (3,'z');
UPDATE public.akey SET v='w' WHERE id=1;
DELETE FROM public.akey WHERE id=3;
INSERT INTO public.nk VALUES (2,'z');
INSERT INTO public.hidden VALUES (2);

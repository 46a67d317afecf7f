-- A snapshot of some tables, and of some rows.
-- @config snapshot.include.collection.list=public.a
-- @config snapshot.select.statement.overrides=public.a
-- @config snapshot.select.statement.overrides.public.a=SELECT * FROM public.a WHERE id > 1
-- @setup
CREATE TABLE public.a (id int PRIMARY KEY, v text);
CREATE TABLE public.b (id int PRIMARY KEY);
INSERT INTO public.a VALUES (1, 'x'), (2, 'y'), (3, NULL);
INSERT INTO public.b VALUES (1);
-- @stream
INSERT INTO public.a VALUES (4, 'z');
INSERT INTO public.b VALUES (2);

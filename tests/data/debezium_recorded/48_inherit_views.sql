-- @setup
CREATE TABLE public.aa_empty (id int PRIMARY KEY);
CREATE TABLE public.parent (id int PRIMARY KEY, v text);
CREATE TABLE public.child (extra int, PRIMARY KEY (id)) INHERITS (public.parent);
CREATE UNLOGGED TABLE public.ul (id int PRIMARY KEY, v text);
CREATE VIEW public.vw AS SELECT * FROM public.parent;
CREATE MATERIALIZED VIEW public.mv AS SELECT 1 AS x;
INSERT INTO public.parent VALUES (1,'p');
INSERT INTO public.child VALUES (2,'c',9);
INSERT INTO public.ul VALUES (1,'u');
-- @stream
INSERT INTO public.parent VALUES (3,'p2');
INSERT INTO public.child VALUES (4,'c2',8);
INSERT INTO public.ul VALUES (2,'u2');
UPDATE public.parent SET v='all';
INSERT INTO public.aa_empty VALUES (1);

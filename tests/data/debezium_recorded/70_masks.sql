-- @config column.mask.hash.SHA-256.with.salt.CzQMA0cB5K=public\.mk\.(a|n)
-- @config column.mask.hash.v2.SHA-512.with.salt.abc=public.mk.b
-- @config column.mask.with.0.chars=public.mk.c
-- @config column.truncate.to.2.chars=public.mk.d
-- @config decimal.handling.mode=string
-- @setup
CREATE TABLE public.mk (id int PRIMARY KEY, a text, b varchar(20), c text, d varchar(5) NOT NULL DEFAULT 'defx', n int);
INSERT INTO public.mk VALUES (1,'ann','bob','cat','dogfi',7),(2,NULL,NULL,NULL,'d',NULL);
-- @stream
INSERT INTO public.mk VALUES (3,'ünï','','x','ééé',9);
UPDATE public.mk SET a='z' WHERE id=1;
DELETE FROM public.mk WHERE id=1;

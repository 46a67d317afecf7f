-- @config include.unknown.datatypes=true
-- Built-in geometric types (only point is supported; others are dropped unless include.unknown.datatypes).
-- @setup
CREATE TABLE public.geo (id int PRIMARY KEY, p point, l line, s lseg, b box, pa path, po polygon, c circle, pp point[]);
INSERT INTO public.geo VALUES (1, '(1.5,-2.25)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '((0,0),(1,1))', '((0,0),(1,1),(1,0))', '<(0,0),2>', '{"(1,2)"}'), (2, NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
-- @stream
INSERT INTO public.geo SELECT id + 10, p,l,s,b,pa,po,c,pp FROM public.geo ORDER BY id;

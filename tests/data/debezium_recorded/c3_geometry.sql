-- Geometric types.
-- @setup
CREATE TABLE public.geo (id int PRIMARY KEY, p point, l line, ls lseg, b box, pa path, po polygon, c circle, parr point[], nn point NOT NULL, pd point DEFAULT '(1,2)', npd point NOT NULL DEFAULT '(3.5,-4)');
INSERT INTO public.geo VALUES
 (1, '(1,2)', '{1,-1,0}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1),(1,0))', '<(0,0),1>', '{"(1,2)","(3,4)"}', '(0,0)', '(0,0)', '(9,9)'),
 (2, '(NaN,Infinity)', '{1,2,3.5}', '[(-1e10,0.1),(1e300,1)]', '(1e20,1),(0,-0.001)', '((0,0),(1e7,1e-5))', '((0.5,0.25))', '<(1.5,-2.5),1e-4>', '{}', '(-0,-Infinity)', NULL, DEFAULT),
 (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '(1e308,5e-324)', NULL, DEFAULT),
 (4, '(0.1,1e7)', NULL, NULL, NULL, NULL, NULL, NULL, '{NULL}', '(12345678.9,1e-3)', DEFAULT, '(1,1)');
-- @stream
INSERT INTO public.geo SELECT id + 100, p, l, ls, b, pa, po, c, parr, nn, pd, npd FROM public.geo ORDER BY id;
UPDATE public.geo SET id = 200 WHERE id = 102;
DELETE FROM public.geo WHERE id = 101;

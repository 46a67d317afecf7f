-- Types of contrib.
-- @setup
CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree; CREATE EXTENSION isn;
CREATE DOMAIN public.dci AS citext; CREATE DOMAIN public.dh AS hstore;
CREATE TABLE public.ex (id int PRIMARY KEY, h hstore, c citext, l ltree, i isbn, ca citext[], ha hstore[], la ltree[], hd hstore DEFAULT 'a=>1', cd citext NOT NULL DEFAULT 'Def', dc public.dci, dh public.dh, nh hstore NOT NULL, nl ltree NOT NULL, e13 ean13);
INSERT INTO public.ex VALUES
 (1, 'a=>1,"b c"=>NULL,"q\"u"=>"x\\y"', 'CaSe', 'Top.Science', '978-0-393-04002-9', '{A,b}', '{"a=>1"}', '{Top.A}', NULL, 'x', 'D', 'k=>v', '', 'a', '978-0-393-04002-9'),
 (2, '', '', '', NULL, '{}', '{}', '{}', DEFAULT, DEFAULT, '', '', 'é=>😀', '', NULL),
 (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'x=>""', 'ü', NULL, NULL, '""=>""', 'b.c', NULL);
-- @stream
INSERT INTO public.ex SELECT id + 100, h, c, l, i, ca, ha, la, hd, cd, dc, dh, nh, nl, e13 FROM public.ex ORDER BY id;
DELETE FROM public.ex WHERE id = 101;

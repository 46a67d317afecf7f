-- @config include.unknown.datatypes=true
-- Domain types, composite types and other types without a mapping; include.unknown.datatypes=false.
-- @setup
CREATE DOMAIN public.posint AS integer CHECK (VALUE > 0);
CREATE DOMAIN public.email AS varchar(50);
CREATE DOMAIN public.price AS numeric(8,2);
CREATE DOMAIN public.price2 AS public.price;
CREATE DOMAIN public.tags AS text[];
CREATE TYPE public.addr AS (street text, zip int);
CREATE TABLE public.dm (id int PRIMARY KEY, pi public.posint, em public.email, pr public.price, pr2 public.price2, tg public.tags, ad public.addr, ads public.addr[],
  emarr public.email[], bx box, mrange int4multirange, tq tsquery, plain text);
INSERT INTO public.dm VALUES (1, 5, 'a@b.c', 12.30, 4.56, '{x,y}', ROW('main, st', 123), array[ROW('s', 1)::public.addr], '{a@b.c}', '(1,1),(0,0)', '{[1,3)}', 'a & b', 'p'), (2, NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
-- @stream
INSERT INTO public.dm SELECT id + 10, pi,em,pr,pr2,tg,ad,ads,emarr,bx,mrange,tq,plain FROM public.dm ORDER BY id;

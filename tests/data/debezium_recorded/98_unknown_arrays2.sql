-- @config include.unknown.datatypes=true
-- @setup
CREATE TYPE public.comp AS (a int, b text);
CREATE TABLE public.ua (id int PRIMARY KEY, bx box[], ci circle[], pt point[], mr int4multirange[], r int4range[], co comp[], tv tsvector[], tq tsquery[], vb varbit[], bt bit(3)[], nm name[], mo money[], iv interval[], tid tid[], xid xid[], lsn pg_lsn[], jp jsonpath[], rc regclass[], ln line, ls lseg, pa path, pc path, po polygon, cc circle, snap txid_snapshot, v2 int2vector, mac macaddr8[], x8 xid8, tt timetz[]);
INSERT INTO public.ua(id) VALUES (1);
INSERT INTO public.ua VALUES (2,'{(1,1),(0,0)}','{"<(0,0),2>"}','{"(1,2)",NULL}','{"{[1,3)}"}','{"[1,3)"}','{"(1,x)",NULL}','{"a:1"}','{"a & b"}','{101}','{101}','{nn}','{1.5}','{"1 day"}','{"(0,1)"}','{5}','{0/16}','{"$.a"}','{pg_class}','{1,2,3}','[(0,0),(1.5,1)]','[(0,0),(1,1)]','((0,0),(1,1))','((0,0),(1,1),(1e30,1e-7))','<(0.1,0),2e10>','10:20:10,14','1 2','{08:00:2b:01:02:03:04:05}','7','{10:00+01}');
-- @stream
INSERT INTO public.ua SELECT 3,bx,ci,pt,mr,r,co,tv,tq,vb,bt,nm,mo,iv,tid,xid,lsn,jp,rc,ln,ls,pa,pc,po,cc,snap,v2,mac,x8,tt FROM public.ua WHERE id=2;
UPDATE public.ua SET ln=NULL WHERE id=3;

-- @config interval.handling.mode=string
-- @config include.unknown.datatypes=true
-- @config decimal.handling.mode=string
-- @setup
CREATE TYPE public.comp AS (a int, b text);
CREATE TYPE public.frange AS RANGE (subtype = float8);
CREATE TABLE public.mt (id int PRIMARY KEY, m money, x bit(1), bv bit varying(9), b8 bit(8), ir int4range, nr numrange, tr tsrange, tzr tstzrange, dr daterange, mr int4multirange, c comp, fr frange, tv tsvector, tq tsquery, ls pg_lsn, mac macaddr, mac8 macaddr8, jp jsonpath, rc regclass, xi xid, td tid, nm name, ch "char", iv interval, tt timetz, t3 time(3), ts0 timestamp(0), tz3 timestamptz(3), bp char(5));
INSERT INTO public.mt(id) VALUES (1);
INSERT INTO public.mt VALUES (2,'$1,234.56','1','10101','11110000','[1,5)','[1.5,2.5]','[2020-01-01,2021-01-01)','[2020-01-01 00:00Z,)','empty','{[1,2),[5,7)}','(1,x)','[1.5,2.5]','a:1 b:2','a & b','0/16B3748','08:00:2b:01:02:03','08:00:2b:01:02:03:04:05','$.a','pg_class','5','(0,1)','nn','c','1 year 2 mons 3 days 04:05:06.789','10:11:12.5+02','10:11:12.3456','2020-01-01 10:11:12.7','2020-01-01 10:11:12.3456Z','ab');
-- @stream
INSERT INTO public.mt SELECT 3, m,x,bv,b8,ir,nr,tr,tzr,dr,mr,c,fr,tv,tq,ls,mac,mac8,jp,rc,xi,td,nm,ch,iv,tt,t3,ts0,tz3,bp FROM public.mt WHERE id=2;
UPDATE public.mt SET x='0', iv='-1 mon +2 days' WHERE id=3;
DELETE FROM public.mt WHERE id=3;

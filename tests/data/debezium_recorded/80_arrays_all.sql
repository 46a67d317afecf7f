-- @setup
CREATE TYPE public.mood AS ENUM ('sad','ok','happy');
CREATE DOMAIN public.posint AS int CHECK (value > 0);
CREATE DOMAIN public.nm AS numeric(10,3);
CREATE TABLE public.arr (id int PRIMARY KEY, b bool[], i2 int2[], i8 int8[], f4 float4[], f8 float8[], n numeric[], np numeric(6,2)[], t text[], vc varchar(5)[], c char(3)[], d date[], tm time[], ts timestamp[], tz timestamptz[], u uuid[], j json[], jb jsonb[], inet inet[], m mood[], o oid[], by bytea[], iv interval[], mo money[], cid cidr[], mac macaddr[], r int4range[], bt bit(3)[], p posint, q nm, pa posint[]);
INSERT INTO public.arr(id) VALUES (1);
INSERT INTO public.arr(id,b,i2,i8,f4,f8,n,np,t,vc,c,d,ts,tz,u,j,jb,inet,m,o,p,q) VALUES (2,'{t,f,NULL}','{1,-2}','{9223372036854775807}','{1.5,NaN}','{Infinity,2.5}','{1.50,NULL}','{1.5,2}','{"a,b","",NULL,"q\"x"}','{ab}','{z}','{2020-01-01,1969-12-31}','{"2020-01-01 10:00:00.123456"}','{"2020-01-01 10:00:00+02"}','{00000000-0000-0000-0000-000000000001}','{"{\"a\":1}"}','{"[1, 2]"}','{10.0.0.1/8}','{sad,happy}','{1,4294967295}',5,1.5);
-- @stream
INSERT INTO public.arr(id,b,i2,i8,f4,f8,n,np,t,vc,c,d,ts,tz,u,j,jb,inet,m,o,p,q) VALUES (3,'{t,f,NULL}','{1,-2}','{9223372036854775807}','{1.5,NaN}','{Infinity,2.5}','{1.50,NULL}','{1.5,2}','{"a,b","",NULL,"q\"x"}','{ab}','{z}','{2020-01-01,1969-12-31}','{"2020-01-01 10:00:00.123456"}','{"2020-01-01 10:00:00+02"}','{00000000-0000-0000-0000-000000000001}','{"{\"a\":1}"}','{"[1, 2]"}','{10.0.0.1/8}','{sad,happy}','{1,4294967295}',5,1.5);
INSERT INTO public.arr(id,tm,iv,cid,mac,r) VALUES (4,'{10:00,23:59:59.5}','{1 day}','{10.0.0.0/8}','{08:00:2b:01:02:03}','{"[1,3)"}');
UPDATE public.arr SET t='{}' WHERE id=2;
DELETE FROM public.arr WHERE id=2;

-- Source types of many more kinds.
-- @config column.propagate.source.type=.*
-- @config decimal.handling.mode=double
-- @setup
CREATE DOMAIN public.d1 AS numeric(6,2); CREATE DOMAIN public.d2 AS timestamp(3); CREATE TYPE public.mood AS ENUM ('ok');
CREATE TABLE public.pp (id bigint PRIMARY KEY, a smallint, t0 time(0), t1 time(1), t6 time(6), tt timetz, tt2 timetz(2), ts timestamp, ts0 timestamp(0), ts1 timestamp(1), tz timestamptz, tz6 timestamptz(6), iv interval, iv2 interval(2), ivy interval year to month, n5 numeric(5), n52 numeric(5,2), na numeric(5,2)[], ta timestamp(3)[], va varchar(7)[], ba bit(3)[], d1 public.d1, d2 public.d2, b1 bit, vb varbit, vb5 varbit(5), c char, c7 char(7), v varchar, e public.mood, ea public.mood[], j json, m money, o oid, u uuid, x xml, i inet, r int4range, bo boolean, f4 real, f8 float8, da date[], p point, by bytea, ts_v tsvector);
INSERT INTO public.pp (id) VALUES (1);
-- @stream
INSERT INTO public.pp (id) VALUES (2);

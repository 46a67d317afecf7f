-- The same where decimals, bytes and times are texts.
-- @config decimal.handling.mode=string
-- @config binary.handling.mode=hex
-- @config time.precision.mode=isostring
-- @setup
CREATE TYPE public.mood AS ENUM ('ok', 'bad');
CREATE TABLE public.ma (id int PRIMARY KEY, i int[], b bigint[], s smallint[], t text[], v varchar[], d date[], ts timestamp[], tz timestamptz[], tm time[], bo bool[], f real[], d8 float8[], u uuid[], j json[], jb jsonb[], n numeric[], n2 numeric(5,2)[], e public.mood[], by bytea[], ip inet[], r int4range[], o oid[], c char(3)[], ci cidr[], mac macaddr[], iv interval[], lb int[]);
INSERT INTO public.ma VALUES (1, '{{1,2},{3,4}}', '{{1},{2}}', '{{1},{2}}', '{{a,b},{c,NULL}}', '{{a},{b}}', '{{2020-01-01},{2021-01-01}}', '{{2020-01-01},{2021-01-01}}', '{{2020-01-01 00:00+00}}', '{{10:00}}', '{{t},{f}}', '{{1.5}}', '{{1.5}}', '{{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}}', '{{1}}', '{{1}}', '{{1.5}}', '{{1.5}}', '{{ok}}', '{{"\\\\x01"}}', '{{1.2.3.4}}', '{{"[1,2)"}}', '{{1}}', '{{a}}', '{{10.0.0.0/8}}', '{{08:00:2b:01:02:03}}', '{{1 day}}', '[2:3]={7,8}');
-- @stream
INSERT INTO public.ma SELECT id + 10, i, b, s, t, v, d, ts, tz, tm, bo, f, d8, u, j, jb, n, n2, e, by, ip, r, o, c, ci, mac, iv, lb FROM public.ma;
INSERT INTO public.ma (id, i, t) VALUES (20, '{{{1},{2}},{{3},{4}}}', '{{{a}}}');

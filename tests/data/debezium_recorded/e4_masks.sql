-- Masks, cuts and hashes of columns of every type.
-- @config column.mask.with.4.chars=public.ty.(v|e|c|dom|na|u)
-- @config column.truncate.to.3.chars=public.ty.(t|by|j|id)
-- @config column.mask.hash.SHA-256.with.salt.abc=public.ty.(ch|i|va)
-- @config column.exclude.list=public.ty.(n0|a)
-- @setup
CREATE TYPE public.mood AS ENUM ('ok', 'bad'); CREATE DOMAIN public.dv AS varchar(9);
CREATE TABLE public.ty (id int PRIMARY KEY, n numeric(6,2), n0 numeric(5), v varchar(7), c char(3), t text, b bit(3), vb varbit(7), t3 time(3), ts3 timestamp(3), tz timestamptz(2), d date, iv interval, by bytea, e public.mood, a int[], va varchar(4)[], u uuid, dom public.dv, j jsonb, f real, bo bool, o oid, m money, i inet, na name, ch "char", p point);
INSERT INTO public.ty VALUES (1, 1.5, 2, 'varchar', 'abc', 'téxt😀 long', B'101', B'1', '01:02:03.4567', '2020-01-01 01:02:03.4567', '2020-01-01 01:02:03.4567+00', '2020-01-01', '1 day', '\x010203040506', 'ok', '{1}', '{abcd}', '123e4567-e89b-12d3-a456-426614174000', 'domain', '{"a": 1}', 1.5, true, 7, 3, '1.2.3.4', 'name', 'c', '(1,2)');
INSERT INTO public.ty (id) VALUES (2);
-- @stream
INSERT INTO public.ty SELECT id + 10, n, n0, v, c, t, b, vb, t3, ts3, tz, d, iv, by, e, a, va, u, dom, j, f, bo, o, m, i, na, ch, p FROM public.ty ORDER BY id;
DELETE FROM public.ty WHERE id = 11;

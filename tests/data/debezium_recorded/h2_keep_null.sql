-- Nulls are kept beside defaults.
-- @config value.converter.replace.null.with.default=false
-- @config decimal.handling.mode=string
-- @config interval.handling.mode=string
-- @config provide.transaction.metadata=true
-- @setup
CREATE TYPE public.mood AS ENUM ('ok', 'bad');
CREATE TABLE public.s (id int PRIMARY KEY, b bool, i8 bigint, f real, d float8, n numeric(8,3), nv numeric, t text, by bytea, dt date, ts timestamp(3), tsu timestamp, tz timestamptz, tm time, e public.mood, j jsonb, a int[], p point, u uuid, df text DEFAULT 'dflt', iv interval);
INSERT INTO public.s VALUES (1, true, 9223372036854775807, 1.5, 1e10, 12345.678, 1.50, 'téxt', '\x0102', '2024-02-29', '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789012', '2024-02-29 12:34:56.789012+00', '12:34:56.789', 'ok', '{"a": 1}', '{1,NULL}', '(1,2)', '123e4567-e89b-12d3-a456-426614174000', NULL, '1 day');
INSERT INTO public.s (id) VALUES (2);
CREATE TABLE public.df (id int PRIMARY KEY, a int DEFAULT 5, b text NOT NULL DEFAULT 'b', c numeric(5,2) DEFAULT 1, d timestamptz DEFAULT '2020-01-01 00:00+00', e public.mood DEFAULT 'bad', f bool NOT NULL DEFAULT true);
INSERT INTO public.df VALUES (1, NULL, 'x', NULL, NULL, NULL, false);
-- @stream
UPDATE public.s SET t = NULL, df = 'x', b = false, d = 'NaN', dt = '1969-12-31', ts = '1969-12-31 23:59:59.999' WHERE id = 1;
UPDATE public.s SET id = 3 WHERE id = 2;
DELETE FROM public.s WHERE id = 1;
INSERT INTO public.df VALUES (2, NULL, 'x', NULL, NULL, NULL, false);
UPDATE public.df SET id = 3 WHERE id = 2;
DELETE FROM public.df;

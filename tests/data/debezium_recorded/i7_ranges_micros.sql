-- Ranges where times and decimals are otherwise.
-- @config time.precision.mode=microseconds
-- @config decimal.handling.mode=string
-- @config interval.handling.mode=string
-- @setup
CREATE TYPE public.textrange AS RANGE (subtype = text);
CREATE DOMAIN public.dr AS int4range;
CREATE TABLE public.rng (id int PRIMARY KEY, r4 int4range, r8 int8range, nr numrange, dr daterange, tsr tsrange, tzr tstzrange, r4a int4range[], tza tstzrange[], tsa tsrange[], tr public.textrange, dom public.dr, m4 int4multirange, mtz tstzmultirange, nn int4range NOT NULL, df int4range DEFAULT '[1,5)', ntz tstzrange NOT NULL, mra int4multirange[]);
INSERT INTO public.rng VALUES
 (1, '[1,5)', '(,)', '[1.50,2.0]', '[2024-01-01,infinity]', '[2024-01-01 12:00:00.5,)', '[2024-01-01 12:00:00+02,2025-01-01 00:00:00.123456+00)', '{"[1,2)",empty,NULL}', '{"[2024-01-01 12:00:00+02,)"}', '{"[2024-01-01,2024-01-02)"}', '[a,b]', '[1,2]', '{[1,2),[3,4)}', '{[2024-01-01 00:00:00+00,)}', '[1,2)', DEFAULT, '[2024-01-01,)', '{"{[1,2)}"}'),
 (2, 'empty', 'empty', '(,1e10)', '(,)', '(infinity,infinity]', '[-infinity,infinity]', '{}', '{}', '{}', '["a,b","c\"d")', NULL, '{}', '{}', 'empty', NULL, 'empty', '{}'),
 (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '(,)', '[2,3)', '(,)', NULL),
 (4, '[-2147483648,2147483647)', '[-9223372036854775808,9223372036854775807)', '[NaN,NaN]', '[0044-03-15 BC,12345-01-01)', '[0044-03-15 BC,12345-01-01)', '[0044-03-15 00:00+00 BC,12345-01-01 00:00+00)', NULL, '{"[0044-03-15 00:00+00 BC,12345-01-01 00:00+00)"}', NULL, '(,)', '[5,5]', NULL, NULL, '[7,8)', NULL, '[1969-12-31 23:59:59.999999+00,1970-01-01 00:00+00]', NULL);
-- @stream
INSERT INTO public.rng SELECT id + 100, r4, r8, nr, dr, tsr, tzr, r4a, tza, tsa, tr, dom, m4, mtz, nn, df, ntz, mra FROM public.rng ORDER BY id;
DELETE FROM public.rng WHERE id = 101;

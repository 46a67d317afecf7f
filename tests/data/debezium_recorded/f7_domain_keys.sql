-- Keys of domains and odd values.
-- @setup
CREATE DOMAIN public.kd AS numeric(6,2); CREATE DOMAIN public.kt AS timestamptz; CREATE DOMAIN public.kb AS bytea; CREATE DOMAIN public.kbool AS bool; CREATE DOMAIN public.kf AS float4;
CREATE TABLE public.dk (a public.kd, b public.kt, c public.kb, d date, e bit(3), f public.kf, v public.kbool, w public.kbool NOT NULL, PRIMARY KEY (a, b, d, f));
INSERT INTO public.dk VALUES (1.5, 'infinity', '\x00', '-infinity', B'101', 'NaN', true, false), (2, '0044-03-15 00:00+00 BC', '', '12345-01-01', B'000', '-0', NULL, true);
-- @stream
INSERT INTO public.dk SELECT a + 10, b, c, d, e, f, v, w FROM public.dk ORDER BY a;
UPDATE public.dk SET d = '1582-10-10' WHERE a = 1.5;
DELETE FROM public.dk WHERE a = 2;

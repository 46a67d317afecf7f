-- @config value.converter.decimal.format=NUMERIC
-- @config key.converter.decimal.format=numeric
-- Decimals as numbers of JSON in values, and as base64 in keys.
-- @setup
CREATE TABLE public.num (
  id numeric(9,2) PRIMARY KEY, n_5_2 numeric(5,2), n_20_0 numeric(20,0), n_38_10 numeric(38,10), n_60_30 numeric(60,30), n_small numeric(3,5), n_neg numeric(3,-2), n_free numeric, m money, a numeric(8,3)[], d numeric(5,2) DEFAULT 1.5, r numeric(12,9) NOT NULL DEFAULT 0.000000001);
INSERT INTO public.num VALUES
 (1.5, 999.99, 99999999999999999999, 1234567890123456789012345678.0123456789, 1.000000000000000000000000000001, 0.00123, 12300, 12345678901234567890.123456789, 92233720368547758.07, '{1.5,NULL,-0.001}', 3, 3),
 (2, -999.99, -99999999999999999999, -0.0000000001, 0, -0.00123, -99900, -0.000000000000000001, -92233720368547758.08, '{}', 2, 2),
 (3, NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL, 1),
 (4, 0, 0, 0, 0, 0, 0, 0, 0, '{0}', 0, 0),
 (5, 0.10, 10, 10.5000000000, 0.00000001, -0.00001, 100, 1e30, -1.5, NULL, 100, 0.0000001);
-- @stream
INSERT INTO public.num SELECT id + 100, n_5_2, n_20_0, n_38_10, n_60_30, n_small, n_neg, n_free, m, a, d, r FROM public.num ORDER BY id;
UPDATE public.num SET n_5_2 = 1, n_38_10 = 0.0000001, r = 0.00001 WHERE id = 101.5;
DELETE FROM public.num WHERE id = 102;

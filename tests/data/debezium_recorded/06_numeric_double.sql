-- @config decimal.handling.mode=double
-- Same SQL as 04 with decimal.handling.mode=string.
-- @setup
CREATE TABLE public.num (
  id int PRIMARY KEY, b boolean, i2 smallint, i4 integer, i8 bigint, f4 real, f8 double precision,
  n_5_2 numeric(5,2), n_20_0 numeric(20,0), n_38_10 numeric(38,10), n_small numeric(3,5), n_free numeric, m money, o oid);
INSERT INTO public.num VALUES
 (1, true, 32767, 2147483647, 9223372036854775807, 3.4028235e38, 1.7976931348623157e308, 999.99, 99999999999999999999, 1234567890123456789012345678.0123456789, 0.00123, 12345678901234567890.123456789, 92233720368547758.07, 4294967295),
 (2, false, -32768, -2147483648, -9223372036854775808, -3.4028235e38, 5e-324, -999.99, -99999999999999999999, -0.0000000001, -0.00123, -0.000000000000000001, -92233720368547758.08, 0),
 (3, NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL),
 (4, true, 0, 0, 0, 'NaN', 'NaN', 0, 0, 0, 0, 0, 0, 1),
 (5, true, 1, 1, 1, 'Infinity', '-Infinity', 1.1, 1, 1, 0.001, 1e30, 1.005, 1),
 (6, true, -1, -1, -1, 0.1, 0.1, 0.10, 10, 10.5000000000, -0.00001, 100, -1.5, 1),
 (7, true, 1, 1, 1, 1e10, 123456789.123456789, 1.00, 1, 1, 0, 1.500, 12345.67, 1);
-- @stream
INSERT INTO public.num SELECT id + 100, b, i2, i4, i8, f4, f8, n_5_2, n_20_0, n_38_10, n_small, n_free, m, o FROM public.num ORDER BY id;
UPDATE public.num SET f8 = 1e21, f4 = 16777216, n_free = 1e-20 WHERE id = 107;

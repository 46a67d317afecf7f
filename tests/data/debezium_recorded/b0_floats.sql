-- Floats.
-- @setup
CREATE DOMAIN public.df AS float8 DEFAULT 2.5;
CREATE TABLE public.fl (id int PRIMARY KEY, f4 real, f8 float8, f4a real[], f8a float8[], df public.df, d4 real NOT NULL DEFAULT '-Infinity', d8 float8 NOT NULL DEFAULT 'NaN', dz float8 DEFAULT -0.0, de float8 DEFAULT 1e20, nn float8 NOT NULL);
INSERT INTO public.fl VALUES
 (1, 'NaN', 'NaN', '{NaN,Infinity,-Infinity,NULL}', '{NaN,Infinity,-Infinity,NULL}', 'NaN', 1, 1, 1, 1, 'NaN'),
 (2, 'Infinity', '-Infinity', '{}', '{}', 'Infinity', 1, 1, 1, 1, 'Infinity'),
 (3, '-0', '-0', '{-0,0}', '{-0,0}', '-0', 1, 1, 1, 1, '-0'),
 (4, 3.4028235e38, 1.7976931348623157e308, '{3.4028235e38}', '{1e308,1e-308}', 1e308, 1, 1, 1, 1, -1e308),
 (5, 1.4e-45, 5e-324, '{1e-45}', '{5e-324}', 5e-324, 1, 1, 1, 1, 2.2250738585072014e-308),
 (6, 1e7, 1e7, '{9999999,1e7,12345678}', '{9999999,1e7,12345678,0.001,0.000999}', 0.1, 1, 1, 1, 1, 123456789.123),
 (7, 0.1, 0.1, '{0.1,1.5e-38,16777216}', '{0.1,100,1e15,1e16,1e21,123456789012345680}', 1, 1, 1, NULL, NULL, 1),
 (8, NULL, NULL, NULL, NULL, NULL, 1, 1, NULL, NULL, 0);
-- @stream
INSERT INTO public.fl SELECT id + 100, f4, f8, f4a, f8a, df, d4, d8, dz, de, nn FROM public.fl ORDER BY id;
INSERT INTO public.fl (id, nn) VALUES (200, 1);
DELETE FROM public.fl WHERE id = 101;

-- Decimals and money as scalars, arrays, domains and defaults; precise.
-- @config decimal.handling.mode=precise
-- @setup
CREATE DOMAIN public.dn AS numeric(8,3); CREATE DOMAIN public.dv AS numeric; CREATE DOMAIN public.dm AS money;
CREATE TABLE public.num (id int PRIMARY KEY, n numeric, n0 numeric(10), n2 numeric(10,2), n10 numeric(20,10), big numeric(40,0), dn public.dn, dv public.dv,
  na numeric[], n2a numeric(6,2)[], def numeric DEFAULT 1.50, def2 numeric(5,3) NOT NULL DEFAULT 0, defn numeric NOT NULL DEFAULT -0.00, m money, md money NOT NULL DEFAULT 1234.5, mm public.dm, nz numeric NOT NULL, nz2 numeric(6,2) NOT NULL);
INSERT INTO public.num VALUES
 (1, 0, 0, 0, 0, 0, 0, 0, '{0,0.00,1.500,NULL}', '{0,1,NULL,-2.5}', 0, 0, 0, 0, 0, 0, 0, 0),
 (2, 1.500, -1, 1.5, 0.0000000001, 9999999999999999999999999999999999999999, 12345.678, 100, '{100,1e20,1e-20}', '{9999.99}', 0.00, 1.5, 12.340, '$1,234.56', '-$0.01', 3, 100, 1),
 (3, 123456789012345678901234567890.123456789, 9999999999, -99999999.99, -1234567890.0123456789, -1, -0.001, 0.000, '{}', '{}', NULL, -0.001, 1e10, '92233720368547758.07', '-92233720368547758.08', NULL, 0.0000001, -0.01),
 (4, 1e-30, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 99.999, 1e-7, NULL, 0.1, NULL, 1e30, 0.10),
 (5, 1e100, 1, 1, 1, 1, 1, 1e5, '{{1,2},{3,4}}', '{{1,2}}', 1, 1, 1, 1, 1, 1, 1, 1),
 (6, 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', 'NaN', '{NaN,1}', '{NaN}', 'NaN', 1, 3, 1, 1, 1, 1, 1),
 (7, 'Infinity', 1, 1, 1, 1, 1, '-Infinity', '{Infinity,-Infinity}', NULL, 'Infinity', 1, 3, 1, 1, 1, 1, 1),
 (8, -100, -100, -100.10, 100, 1000, 10.100, 10.10, '{10,100,1000.0}', '{10,100.10}', 100, 10, 1000, 10, 100, 1000, 10, 100);
-- @stream
INSERT INTO public.num SELECT id + 100, n, n0, n2, n10, big, dn, dv, na, n2a, def, def2, defn, m, md, mm, nz, nz2 FROM public.num ORDER BY id;
UPDATE public.num SET id = 201 WHERE id = 102;
DELETE FROM public.num WHERE id = 103;
INSERT INTO public.num (id, nz, nz2) VALUES (300, 1.0, 2);

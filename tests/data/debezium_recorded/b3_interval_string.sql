-- Intervals as texts.
-- @config interval.handling.mode=string
-- @setup
CREATE DOMAIN public.di AS interval;
CREATE TABLE public.iv (id int PRIMARY KEY, i interval, i3 interval(3), iy interval year, ids interval day to second, di public.di, ia interval[], d interval NOT NULL DEFAULT '1 day 02:03:04.5', dn interval DEFAULT '-1 year -2 mons', nn interval NOT NULL);
INSERT INTO public.iv VALUES
 (1, '0', '0', '0', '0', '0', '{1 day}', '0', '0', '0'),
 (2, '1 year 2 mons 3 days 04:05:06.789012', '1.23456 s', '5 years', '3 days 04:05:06.7', '1 mon', '{}', '1 s', '1 s', '1 us'),
 (3, '-1 year +2 mons -3 days +04:05:06.789012', '-1.23456 s', '-5 years', '-3 days +04:05:06.7', '-1 mon', NULL, '-1 s', NULL, '-1 us'),
 (4, '25:00:00', '100:59:59.999', '100 years', '400 days', '-1 day +1 s', NULL, '1 year', NULL, '1000 days'),
 (5, '13 mons', '90 min', '1 year', '-00:00:00.5', '1 mon -1 day', NULL, '11 mons 30 days 23:59:59.999999', NULL, '-0.1 s'),
 (6, NULL, NULL, NULL, NULL, NULL, NULL, DEFAULT, NULL, '12 mons'),
 (7, '1000000:00:00', NULL, '10000 years', '106751991 days', '1 year -1 s', NULL, DEFAULT, NULL, '999 years');
-- @stream
INSERT INTO public.iv SELECT id + 100, i, i3, iy, ids, di, ia, d, dn, nn FROM public.iv ORDER BY id;
DELETE FROM public.iv WHERE id = 102;
INSERT INTO public.iv (id, nn) VALUES (200, '1 day');

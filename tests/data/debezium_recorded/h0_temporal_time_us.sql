-- Infinite, BC and five-digit years in arrays; adaptive_time_microseconds.
-- @config time.precision.mode=adaptive_time_microseconds
-- @setup
CREATE TABLE public.src (id int PRIMARY KEY, d date, ts timestamp, tz timestamptz, t time, tt timetz, iv interval);
INSERT INTO public.src VALUES
 (1, 'infinity', 'infinity', 'infinity', '12:34:56.789012', '12:34:56.5+02', '1 day'),
 (2, '-infinity', '-infinity', '-infinity', '00:00', '00:00+00', '-1 mon'),
 (3, '0044-03-15 BC', '0044-03-15 12:00:00 BC', '0044-03-15 12:00:00+00 BC', '24:00', '24:00+00', '0'),
 (4, '12345-06-07', '12345-06-07 08:09:10.111213', '12345-06-07 08:09:10.111213+00', '23:59:59.999999', '23:59:59.999999-15:59', '178000000 years'),
 (5, '1582-10-10', '1582-10-10 01:02:03.004', '1582-10-10 01:02:03.004+00', '01:02:03.1', '01:02:03.1+05:30', '1 year 2 mons 3 days 04:05:06.789'),
 (6, '0001-01-01', '0001-01-01 00:00:00', '0001-01-01 00:00:00+00', '00:00:00.000001', '00:00:00.000001+14', '-00:00:00.000001'),
 (7, '5874897-12-31', '290000-12-31 23:59:59.999999', '290000-12-31 23:59:59.999999+00', NULL, NULL, NULL),
 (8, '4713-01-01 BC', '4713-01-01 00:00:00 BC', '4713-01-01 00:00:00+00 BC', NULL, NULL, NULL),
 (9, '1969-12-31', '1969-12-31 23:59:59.999999', '1969-12-31 23:59:59.999999+00', NULL, NULL, NULL),
 (10, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE public.arr (id int PRIMARY KEY, da date[], tsa timestamp[], ts3a timestamp(3)[], ts0a timestamp(0)[], tza timestamptz[], tz3a timestamptz(3)[], ta time[], t3a time(3)[], tta timetz[], nn date[] NOT NULL, ntz timestamptz[] NOT NULL);
INSERT INTO public.arr SELECT id, ARRAY[d], ARRAY[ts, NULL], ARRAY[ts], ARRAY[ts], ARRAY[tz, '2024-02-29 12:34:56.789+02'], ARRAY[tz], ARRAY[t], ARRAY[t], ARRAY[tt], ARRAY[d, '2000-01-01'], ARRAY[NULL, tz] FROM public.src ORDER BY id;
-- @stream
INSERT INTO public.arr SELECT id + 100, da, tsa, ts3a, ts0a, tza, tz3a, ta, t3a, tta, nn, ntz FROM public.arr ORDER BY id;
DELETE FROM public.arr WHERE id = 101;

-- @config time.precision.mode=connect
-- @config interval.handling.mode=numeric
-- infinity, BC dates, 24:00:00, far-range values, interval.handling.mode=string.
-- @setup
CREATE TABLE public.sp (id int PRIMARY KEY, d date, t time, ts timestamp, ts3 timestamp(3), tz timestamptz, iv interval);
INSERT INTO public.sp VALUES (1, 'infinity', '24:00:00', 'infinity', 'infinity', 'infinity', '1 year 2 mons 3 days 04:05:06.789012'),
 (2, '-infinity', NULL, '-infinity', '-infinity', '-infinity', '0'), (3, '0044-03-15 BC', NULL, '0044-03-15 12:00:00 BC', '0044-03-15 12:00:00 BC', '0044-03-15 12:00:00+00 BC', '-1 years +2 mons -3 days +04:00:00'),
 (4, '20000-01-01', NULL, '20000-01-01 00:00:00', '20000-01-01', '20000-01-01 00:00:00Z', '00:00:00.000001');
-- @stream
INSERT INTO public.sp SELECT id + 10, d, t, ts, ts3, tz, iv FROM public.sp ORDER BY id;
INSERT INTO public.sp (id, iv) VALUES (21, '-00:00:01.5'), (22, '1 day'), (23, '1000000 hours');

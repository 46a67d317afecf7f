-- Infinite, BC and five-digit years in domains, connect.
-- @config time.precision.mode=connect
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
CREATE DOMAIN public.dd AS date; CREATE DOMAIN public.dts AS timestamp(3); CREATE DOMAIN public.dtz AS timestamptz; CREATE DOMAIN public.dtz2 AS public.dtz; CREATE DOMAIN public.dt AS time; CREATE DOMAIN public.dtt AS timetz; CREATE DOMAIN public.div AS interval;
CREATE TABLE public.dom (id int PRIMARY KEY, d public.dd, ts public.dts, tz public.dtz, tz2 public.dtz2, t public.dt, tt public.dtt, iv public.div, nd public.dd NOT NULL, ntz public.dtz NOT NULL DEFAULT '2001-02-03 04:05:06+00');
INSERT INTO public.dom SELECT id, d, ts, tz, tz, t, tt, CASE WHEN id <> 4 THEN iv END, coalesce(d, '2000-01-01'), coalesce(tz, '2000-01-01 00:00:00+00') FROM public.src ORDER BY id;
-- @stream
INSERT INTO public.dom SELECT id + 100, d, ts, tz, tz2, t, tt, iv, nd, ntz FROM public.dom ORDER BY id;
UPDATE public.dom SET id = 200 WHERE id = 104;
DELETE FROM public.dom WHERE id = 101;

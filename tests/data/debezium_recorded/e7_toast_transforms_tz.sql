-- TimezoneConverter.
-- @config transforms=tz
-- @config transforms.tz.type=io.debezium.transforms.TimezoneConverter
-- @config transforms.tz.converted.timezone=+05:30
-- @setup
CREATE TABLE public.tz (id int PRIMARY KEY, a timestamptz, b timestamp, c timestamp(3), d time, e timetz, s text, n timestamptz NOT NULL DEFAULT '2020-01-01 00:00+00');
INSERT INTO public.tz VALUES (1, '2024-02-29 12:34:56.789012+00', '2024-02-29 12:34:56.789012', '2024-02-29 12:34:56.789', '12:34', '12:34+02', 's', DEFAULT), (2, NULL, NULL, NULL, NULL, NULL, NULL, '1969-12-31 23:59:59.5+00');
-- @stream
UPDATE public.tz SET a = '2024-12-31 23:00+00'; DELETE FROM public.tz;

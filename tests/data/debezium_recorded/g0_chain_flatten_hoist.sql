-- An envelope flattened, a key hoisted.
-- @config transforms=t0,t1,t2
-- @config transforms.t0.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.t0.delete.tombstone.handling.mode=rewrite
-- @config transforms.t0.predicate=msg
-- @config transforms.t0.negate=true
-- @config transforms.t1.type=org.apache.kafka.connect.transforms.Flatten$Value
-- @config transforms.t1.delimiter=_
-- @config transforms.t1.predicate=msg
-- @config transforms.t1.negate=true
-- @config transforms.t2.type=org.apache.kafka.connect.transforms.HoistField$Key
-- @config transforms.t2.field=k
-- @config transforms.t2.predicate=msg
-- @config transforms.t2.negate=true
-- @config predicates=msg
-- @config predicates.msg.type=org.apache.kafka.connect.transforms.predicates.TopicNameMatches
-- @config predicates.msg.pattern=.*message
-- @config tombstones.on.delete=false
-- @setup
CREATE TYPE public.mood AS ENUM ('ok', 'bad');
CREATE TABLE public.s (id int PRIMARY KEY, b bool, i8 bigint, f real, d float8, n numeric(8,3), nv numeric, t text, by bytea, dt date, ts timestamp(3), tsu timestamp, tz timestamptz, tm time, e public.mood, j jsonb, a int[], p point, u uuid, df text DEFAULT 'dflt', iv interval);
INSERT INTO public.s VALUES (1, true, 9223372036854775807, 1.5, 1e10, 12345.678, 1.50, 'téxt', '\x0102', '2024-02-29', '2024-02-29 12:34:56.789', '2024-02-29 12:34:56.789012', '2024-02-29 12:34:56.789012+00', '12:34:56.789', 'ok', '{"a": 1}', '{1,NULL}', '(1,2)', '123e4567-e89b-12d3-a456-426614174000', NULL, '1 day');
INSERT INTO public.s (id) VALUES (2);
-- @stream
UPDATE public.s SET t = NULL, df = 'x', b = false, d = 'NaN', dt = '1969-12-31', ts = '1969-12-31 23:59:59.999' WHERE id = 1;
UPDATE public.s SET id = 3 WHERE id = 2;
DELETE FROM public.s WHERE id = 1;

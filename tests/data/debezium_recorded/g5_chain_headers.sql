-- Fields to headers, headers to fields.
-- @config transforms=t0,t1,t2,t3,t4
-- @config transforms.t0.type=org.apache.kafka.connect.transforms.HeaderFrom$Key
-- @config transforms.t0.fields=id
-- @config transforms.t0.headers=theId
-- @config transforms.t0.operation=copy
-- @config transforms.t0.predicate=msg
-- @config transforms.t0.negate=true
-- @config transforms.t1.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.t1.delete.tombstone.handling.mode=rewrite
-- @config transforms.t1.predicate=msg
-- @config transforms.t1.negate=true
-- @config transforms.t2.type=org.apache.kafka.connect.transforms.HeaderFrom$Value
-- @config transforms.t2.fields=t,n,dt,a,e
-- @config transforms.t2.headers=ht,hn,hdt,ha,he
-- @config transforms.t2.operation=move
-- @config transforms.t2.predicate=msg
-- @config transforms.t2.negate=true
-- @config transforms.t3.type=org.apache.kafka.connect.transforms.InsertHeader
-- @config transforms.t3.header=lit
-- @config transforms.t3.value.literal=1.50
-- @config transforms.t3.predicate=msg
-- @config transforms.t3.negate=true
-- @config transforms.t4.type=io.debezium.transforms.HeaderToValue
-- @config transforms.t4.headers=lit,theId
-- @config transforms.t4.fields=lit,key_id
-- @config transforms.t4.operation=copy
-- @config transforms.t4.predicate=msg
-- @config transforms.t4.negate=true
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

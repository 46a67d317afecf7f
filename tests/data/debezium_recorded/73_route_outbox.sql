-- @config table.include.list=public.outbox
-- @config transforms=outbox
-- @config transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
-- @config transforms.outbox.table.fields.additional.placement=type:header:eventType,extra:envelope
-- @config transforms.outbox.table.expand.json.payload=true
-- @setup
CREATE TABLE public.outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb, extra text);
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000001','order','o1','Created','{"a":1,"b":[1,2],"c":null}','e');
-- @stream
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000002','customer','c1','Updated','{"x":"y","n":1.5}',NULL);
DELETE FROM public.outbox;
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000003','customer','c2','Gone',NULL,'z');

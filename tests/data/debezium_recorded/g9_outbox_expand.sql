-- Outbox events whose payloads are expanded, with versions.
-- @config transforms=outbox
-- @config transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
-- @config transforms.outbox.table.expand.json.payload=true
-- @config transforms.outbox.table.fields.additional.placement=tenant:envelope:ten,type:header
-- @config transforms.outbox.table.field.event.schema.version=ver
-- @config transforms.outbox.route.tombstone.on.empty.payload=true
-- @config transforms.outbox.table.op.invalid.behavior=warn
-- @config table.include.list=public.outbox
-- @setup
CREATE TABLE public.outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255), payload text, tenant text, ver int NOT NULL DEFAULT 1);
-- @stream
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000001', 'Order', '1', 'Created', '{"a": 1, "b": [1, 2], "c": {"d": "x"}}', 't1', 1);
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000002', 'User', '2', 'Gone', NULL, NULL, 1);
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000003', 'User', '3', NULL, '{"a": "text", "e": 1.5}', 'é', 2);
UPDATE public.outbox SET type = 'x';
DELETE FROM public.outbox;
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000004', 'User', '4', 'T', '{"a": 2, "b": [3], "c": {"d": "y"}}', 't', 1);

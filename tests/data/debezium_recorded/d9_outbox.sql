-- Outbox events, with an envelope.
-- @config transforms=outbox
-- @config transforms.outbox.type=io.debezium.transforms.outbox.EventRouter
-- @config transforms.outbox.table.field.event.key=aggregateid
-- @config transforms.outbox.route.by.field=aggregatetype
-- @config transforms.outbox.route.topic.replacement=ev.${routedByValue}.x
-- @config transforms.outbox.table.fields.additional.placement=type:header:eventType,created:envelope:at,tenant:envelope,n:header
-- @config transforms.outbox.table.field.event.timestamp=created_ms
-- @config table.include.list=public.outbox
-- @setup
CREATE TABLE public.outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb, tenant text, created timestamptz DEFAULT '2020-01-01 00:00+00', created_ms timestamp NOT NULL DEFAULT '2020-01-01', n int);
-- @stream
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000001', 'Order', '1', 'Created', '{"a": 1, "b": [1, "x"]}', 't1', DEFAULT, '2020-01-02 03:04:05.678901', 3);
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000002', 'Üser', '', 'Gone', NULL, NULL, NULL, '1969-12-31 23:59:59.999', NULL);
DELETE FROM public.outbox;
INSERT INTO public.outbox VALUES ('00000000-0000-0000-0000-000000000003', 'Order', '2', 'Odd', '"text"', 'é', DEFAULT, DEFAULT, 0);

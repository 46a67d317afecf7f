-- A chain of transforms with predicates.
-- @config transforms=un,route,ins,mask,rep,cast,key,hdr
-- @config predicates=isA,tomb,msg
-- @config predicates.msg.type=org.apache.kafka.connect.transforms.predicates.TopicNameMatches
-- @config predicates.msg.pattern=dbz\.message
-- @config predicates.isA.type=org.apache.kafka.connect.transforms.predicates.TopicNameMatches
-- @config predicates.isA.pattern=dbz\.public\.a.*
-- @config predicates.tomb.type=org.apache.kafka.connect.transforms.predicates.RecordIsTombstone
-- @config transforms.un.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.un.delete.tombstone.handling.mode=rewrite
-- @config transforms.un.add.fields=op
-- @config transforms.route.type=org.apache.kafka.connect.transforms.RegexRouter
-- @config transforms.route.regex=dbz\.public\.(.*)
-- @config transforms.route.replacement=out-$1
-- @config transforms.route.predicate=isA
-- @config transforms.ins.type=org.apache.kafka.connect.transforms.InsertField$Value
-- @config transforms.ins.static.field=origin
-- @config transforms.ins.static.value=pg
-- @config transforms.ins.topic.field=came_by
-- @config transforms.ins.predicate=msg
-- @config transforms.ins.negate=true
-- @config transforms.mask.type=org.apache.kafka.connect.transforms.MaskField$Value
-- @config transforms.mask.fields=v
-- @config transforms.mask.replacement=##
-- @config transforms.mask.predicate=isA
-- @config transforms.rep.type=org.apache.kafka.connect.transforms.ReplaceField$Value
-- @config transforms.rep.exclude=n
-- @config transforms.rep.renames=d:day,ts:at
-- @config transforms.cast.type=org.apache.kafka.connect.transforms.Cast$Value
-- @config transforms.cast.spec=id:string
-- @config transforms.key.type=org.apache.kafka.connect.transforms.ExtractField$Key
-- @config transforms.key.field=id
-- @config transforms.key.predicate=msg
-- @config transforms.key.negate=true
-- @config transforms.hdr.type=org.apache.kafka.connect.transforms.InsertHeader
-- @config transforms.hdr.header=site
-- @config transforms.hdr.value.literal=7
-- @setup
CREATE TABLE public.a1 (id int PRIMARY KEY, v text, n numeric(6,2), d date, ts timestamp(3) NOT NULL DEFAULT '2020-01-01');
CREATE TABLE public.b1 (id int PRIMARY KEY, v text, n numeric(6,2), d date, ts timestamp(3) NOT NULL DEFAULT '2020-01-01');
INSERT INTO public.a1 VALUES (1, 'a', 1.5, '2020-02-03'); INSERT INTO public.b1 VALUES (1, 'b', NULL, NULL);
-- @stream
UPDATE public.a1 SET v = NULL; UPDATE public.b1 SET v = 'é';
UPDATE public.a1 SET id = 2; DELETE FROM public.a1; DELETE FROM public.b1;
INSERT INTO public.a1 VALUES (5, NULL, NULL, '0044-03-15 BC', 'infinity');

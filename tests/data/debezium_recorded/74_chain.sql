-- @config transforms=route,unwrap,mask,ins,cast,ren,hdr
-- @config transforms.route.type=org.apache.kafka.connect.transforms.RegexRouter
-- @config transforms.route.regex=dbz\.public\.(.*)
-- @config transforms.route.replacement=shop-$1
-- @config transforms.unwrap.type=io.debezium.transforms.ExtractNewRecordState
-- @config transforms.mask.type=org.apache.kafka.connect.transforms.MaskField$Value
-- @config transforms.mask.fields=secret,n
-- @config transforms.ins.type=org.apache.kafka.connect.transforms.InsertField$Value
-- @config transforms.ins.static.field=src
-- @config transforms.ins.static.value=pg
-- @config transforms.ins.topic.field=tp
-- @config transforms.cast.type=org.apache.kafka.connect.transforms.Cast$Value
-- @config transforms.cast.spec=q:string,f:int32
-- @config transforms.ren.type=org.apache.kafka.connect.transforms.ReplaceField$Value
-- @config transforms.ren.exclude=gone
-- @config transforms.ren.renames=v:value
-- @config transforms.hdr.type=org.apache.kafka.connect.transforms.InsertHeader
-- @config transforms.hdr.header=h
-- @config transforms.hdr.value.literal=42
-- @setup
CREATE TABLE public.ch (id int PRIMARY KEY, v text, secret text, n int, q bigint, f float8, gone text, ts timestamptz);
INSERT INTO public.ch VALUES (1,'x','s',5,7,1.9,'g','2020-01-01Z');
-- @stream
INSERT INTO public.ch VALUES (2,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
UPDATE public.ch SET v='y' WHERE id=1;
DELETE FROM public.ch WHERE id=1;

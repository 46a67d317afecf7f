-- @config predicates=isA
-- @config predicates.isA.type=org.apache.kafka.connect.transforms.predicates.TopicNameMatches
-- @config predicates.isA.pattern=.*public.a
-- @config transforms=drop,ex,hoist,setm
-- @config transforms.drop.type=org.apache.kafka.connect.transforms.Filter
-- @config transforms.drop.predicate=isA
-- @config transforms.ex.type=org.apache.kafka.connect.transforms.ExtractField$Value
-- @config transforms.ex.field=after
-- @config transforms.hoist.type=org.apache.kafka.connect.transforms.HoistField$Value
-- @config transforms.hoist.field=row
-- @config transforms.setm.type=org.apache.kafka.connect.transforms.SetSchemaMetadata$Value
-- @config transforms.setm.schema.name=my.Row
-- @config transforms.setm.schema.version=3
-- @setup
CREATE TABLE public.a (id int PRIMARY KEY);
CREATE TABLE public.b (id int PRIMARY KEY, v text, n numeric(5,2));
INSERT INTO public.a VALUES (1);
INSERT INTO public.b VALUES (1,'x',1.5);
-- @stream
INSERT INTO public.a VALUES (2);
INSERT INTO public.b VALUES (2,NULL,NULL);
UPDATE public.b SET v='q';
DELETE FROM public.b;

-- @config schema.include.list=app.*
-- @config table.exclude.list=app.skip_.*
-- @config column.include.list=app.t.id,app.t.(v|w),app2.x.*
-- @config publication.autocreate.mode=filtered
-- @setup
CREATE SCHEMA app;
CREATE SCHEMA app2;
CREATE SCHEMA other;
CREATE TABLE app.t (id int PRIMARY KEY, v text, w int, hidden text);
CREATE TABLE app2.x (id int PRIMARY KEY, v text);
CREATE TABLE app.skip_me (id int PRIMARY KEY);
CREATE TABLE other.t (id int PRIMARY KEY);
INSERT INTO app.t VALUES (1,'a',2,'h');
INSERT INTO app2.x VALUES (1,'b');
INSERT INTO app.skip_me VALUES (1);
INSERT INTO other.t VALUES (1);
-- @stream
INSERT INTO app.t VALUES (2,'a',2,'h');
INSERT INTO app2.x VALUES (2,'b');
INSERT INTO app.skip_me VALUES (2);
INSERT INTO other.t VALUES (2);
UPDATE app.t SET hidden='i' WHERE id=1;
DELETE FROM app.t WHERE id=1;
